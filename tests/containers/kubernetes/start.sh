# Runs an API server, with an etcd of its own unless $1 is the URL of one. The other arguments are more flags of the server.
# Files below /data that are there already are used: the certificates, the key of the service accounts, and the users.
etcd=$1
shift
cd /data

if [ ! -e ca.pem ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tenure-test -keyout ca-key.pem -out ca.pem 2>openssl.log
    openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout key.pem -out request.pem 2>>openssl.log
    echo subjectAltName=IP:127.0.0.1 >names
    openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile names -out cert.pem 2>>openssl.log
fi
if [ ! -e sa-key.pem ]; then
    openssl genrsa -out sa-key.pem 2048 2>>openssl.log
    openssl rsa -in sa-key.pem -pubout -out sa.pem 2>>openssl.log
fi
# Each user's token is the user's name and "-token". What a user may do is up to the roles.
[ -e users.csv ] || printf '%s\n' 'admin-token,admin,1,"system:masters"' 'alice-token,alice,2' 'bob-token,bob,3' >users.csv

if [ -z "$etcd" ]; then
    etcd=http://127.0.0.1:2379
    etcd --data-dir=/data/etcd --listen-client-urls=$etcd --advertise-client-urls=$etcd 2>etcd.log &
fi
exec kube-apiserver \
    --etcd-servers="$etcd" \
    --bind-address=0.0.0.0 --secure-port=6443 --advertise-address=127.0.0.1 --endpoint-reconciler-type=none \
    --tls-cert-file=cert.pem --tls-private-key-file=key.pem --client-ca-file=ca.pem \
    --token-auth-file=users.csv --authorization-mode=RBAC \
    --service-account-issuer=https://kubernetes.default.svc --api-audiences=https://kubernetes.default.svc \
    --service-account-signing-key-file=sa-key.pem --service-account-key-file=sa.pem \
    --service-cluster-ip-range=10.0.0.0/24 --disable-admission-plugins=ServiceAccount \
    "$@"

# Runs SeaweedFS with its S3 API. /data/s3.json has the identities. The arguments are more flags.
test -e /data/s3.json || cat >/data/s3.json <<END
{"identities": [{"name": "admin", "credentials": [{"accessKey": "admin", "secretKey": "admin-secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}
END
mkdir -p /data/files
exec weed server -dir=/data/files -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=100 \
    -filer -s3 -s3.ip.bind=0.0.0.0 -s3.port=8333 -s3.port.iceberg=0 -s3.port.lance=0 -s3.config=/data/s3.json "$@"

# As candidate.py, in shell: candidate.sh SIDECAR ELECTION NAME LOG. CLIENT names the client that is tested.
. "$CLIENT"
TENURE_SIDECAR=http://$1 election=$2 name=$3 log=$4

while :; do
    if ! tenure_campaign "$election"; then
        sleep 0.2
        continue
    fi
    steps=0
    while test $steps -lt 20 && tenure_renew; do
        now=$(_tenure_now)
        tenure_check || break
        # The clock is read up to 10 ms too low.
        echo "{\"client\":\"$name\",\"token\":$TENURE_TOKEN,\"first\":$((now + 10))e-3,\"last\":${now}e-3,\"until\":${TENURE_UNTIL}e-3,\"pid\":$$}" >>"$log"
        steps=$((steps + 1))
        sleep 0.05
    done
    echo "{\"client\":\"$name\",\"token\":$TENURE_TOKEN,\"stopped\":$(($(_tenure_now) + 10))e-3}" >>"$log"
    tenure_resign || sleep 0.2
done

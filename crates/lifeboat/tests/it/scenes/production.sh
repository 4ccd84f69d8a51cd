# As a lost host, where two others have to approve; their keys lie where only this test has them.
mv /srv/artifacts /srv/artifacts.lost
pg_ctl -D /var/lib/postgresql/15/main -m immediate stop
for person in ada bob; do
    ssh-keygen -q -t ed25519 -N '' -C "$person" -f "/mnt/safe/$person"
    echo "$person@example.com namespaces=\"lifeboat-approval@lifeboat.dev\" $(cut -d ' ' -f 1,2 "/mnt/safe/$person.pub")"
done >/etc/lifeboat/allowed_signers

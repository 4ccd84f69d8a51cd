# The theft is told by the second: the backup before it is of an earlier one.
SECOND=$(date +%s)
until [ "$(date +%s)" != "$SECOND" ]; do
    sleep 0.05
done

# The medium with the identity cannot be read any more. The server runs.
rm /mnt/safe/identity.txt

# Somebody dropped a table on a server that runs on, and others went on working. The pauses put the accident between two moments.
sleep 0.1
psql -X -q -d shop -c 'DROP TABLE orders'
sleep 0.1
psql -X -q -d shop -c 'CREATE TABLE invoices (id int PRIMARY KEY); INSERT INTO invoices VALUES (1)'

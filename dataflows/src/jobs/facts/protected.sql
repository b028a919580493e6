-- Accounts that only accepted followers may read.
SELECT id::text AS key, '' AS value
FROM users
WHERE protected

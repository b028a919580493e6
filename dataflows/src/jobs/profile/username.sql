-- Name to user.
SELECT lower(username) AS key, id::text AS value
FROM users
WHERE deleted_at IS NULL

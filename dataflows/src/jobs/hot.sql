-- Hot accounts.
SELECT id AS author
FROM users
WHERE verified AND deleted_at IS NULL
UNION
SELECT user_id
FROM popular

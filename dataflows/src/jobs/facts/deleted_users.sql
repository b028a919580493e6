-- Accounts that were deleted.
SELECT id::text AS key, '' AS value
FROM users
WHERE deleted_at IS NOT NULL

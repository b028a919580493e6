-- Tweets that were deleted.
SELECT id::text AS key, '' AS value
FROM tweets
WHERE deleted_at IS NOT NULL

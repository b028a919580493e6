-- Up to where a user has read notifications.
SELECT user_id::text AS key, notifications_id::text AS value
FROM read_marks

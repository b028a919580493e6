-- User to who asks to follow.
SELECT concat_ws(' ', following_id, follower_id) AS key, feedmill_micros(created_at)::text AS value
FROM follows
WHERE NOT accepted

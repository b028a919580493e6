-- User to accounts followed.
SELECT concat_ws(' ', follower_id, following_id) AS key, feedmill_micros(created_at)::text AS value
FROM follows
WHERE accepted

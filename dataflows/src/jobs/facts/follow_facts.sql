-- Follows and follow requests.
SELECT concat_ws(' ', follower_id, following_id) AS key, CASE WHEN accepted THEN 't' ELSE 'f' END AS value
FROM follows

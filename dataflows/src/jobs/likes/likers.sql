-- Tweet to who likes it.
SELECT concat_ws(' ', tweet_id, user_id) AS key, feedmill_micros(created_at)::text AS value
FROM likes

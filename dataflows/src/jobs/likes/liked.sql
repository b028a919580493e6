-- User and tweet that the user likes.
SELECT concat_ws(' ', user_id, tweet_id) AS key, '' AS value
FROM likes

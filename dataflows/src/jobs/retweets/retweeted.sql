-- User and tweet that the user retweeted.
SELECT concat_ws(' ', user_id, tweet_id) AS key, id::text AS value
FROM retweets

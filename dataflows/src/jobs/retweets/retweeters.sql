-- Tweet to who retweeted it.
SELECT concat_ws(' ', tweet_id, id) AS key, user_id::text AS value
FROM retweets

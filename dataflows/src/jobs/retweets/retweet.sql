-- Retweets of tweets that were not deleted.
SELECT id::text AS key, concat_ws(' ', user_id, tweet_id) AS value
FROM retweets
WHERE NOT EXISTS (SELECT FROM tweets WHERE tweets.id = tweet_id AND deleted_at IS NOT NULL)

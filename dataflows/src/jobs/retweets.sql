-- Retweets of tweets that were not deleted.
SELECT id::text AS key, concat_ws(' ', user_id, tweet_id) AS value
FROM retweets
WHERE tweet_id NOT IN (SELECT id FROM tweets WHERE deleted_at IS NOT NULL)

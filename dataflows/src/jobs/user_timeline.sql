-- User to own entries and replies.
SELECT concat_ws(' ', user_id, id, 't') AS key,
       concat_ws(' ', CASE WHEN reply_to_id IS NULL THEN 'f' ELSE 't' END, id) AS value
FROM tweets
WHERE deleted_at IS NULL
UNION ALL
SELECT concat_ws(' ', user_id, id, 'r'), concat_ws(' ', 'f', tweet_id)
FROM retweets
WHERE NOT EXISTS (SELECT FROM tweets WHERE tweets.id = tweet_id AND deleted_at IS NOT NULL)

-- All counters that are not zero, but that of likes.
SELECT concat_ws(' ', counter, of) AS key, count(*)::text AS value
FROM (
    SELECT 'followers' AS counter, following_id AS of FROM follows WHERE accepted
    UNION ALL
    SELECT 'following', follower_id FROM follows WHERE accepted
    UNION ALL
    SELECT 'tweets', user_id FROM tweets WHERE deleted_at IS NULL
    UNION ALL
    SELECT 'retweets', tweet_id FROM retweets
    UNION ALL
    SELECT 'replies', reply_to_id FROM tweets WHERE deleted_at IS NULL AND reply_to_id IS NOT NULL
) AS counted
GROUP BY counter, of

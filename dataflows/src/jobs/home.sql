-- Viewer to pushed entries that are not older than :fanout_ms.
WITH active AS MATERIALIZED (@active), hot AS MATERIALIZED (@hot), audience AS (@audience),
entry AS (
    SELECT user_id AS author, id, 't' AS kind
    FROM tweets
    WHERE deleted_at IS NULL AND reply_to_id IS NULL
    UNION ALL
    SELECT user_id, id, 'r'
    FROM retweets
    WHERE NOT EXISTS (SELECT FROM tweets WHERE tweets.id = tweet_id AND deleted_at IS NOT NULL)
),
recent AS MATERIALIZED (
    SELECT author, id, kind
    FROM entry
    WHERE id > (greatest(:time_ms - :fanout_ms, 0) << 16 | 65535) AND id < 1::bigint << 62
)
SELECT concat_ws(' ', viewer, id, kind) AS key, '' AS value
FROM recent JOIN audience ON audience.author = recent.author
WHERE NOT EXISTS (SELECT FROM hot WHERE hot.author = recent.author)
UNION ALL
SELECT concat_ws(' ', author, id, kind), ''
FROM recent
WHERE author IN (SELECT viewer FROM active)

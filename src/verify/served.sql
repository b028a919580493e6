-- The newest entries that each viewer may see, as SQL over the relations and nothing derived.
-- Of the accounts followed, the newest $3 count. A tweet appears once, as its newest entry that the viewer may see.
SELECT viewer, entry.id, entry.kind
FROM unnest($1::bigint[]) AS viewer,
LATERAL (
    WITH source AS (
        SELECT viewer AS id
        UNION ALL
        (SELECT following_id FROM follows WHERE follower_id = viewer AND accepted
         ORDER BY created_at DESC, following_id DESC LIMIT $3)
    ), hidden AS (
        SELECT muted_id AS id FROM mutes WHERE muter_id = viewer
        UNION SELECT blocked_id FROM blocks WHERE blocker_id = viewer
        UNION SELECT blocker_id FROM blocks WHERE blocked_id = viewer
    ), candidate AS (
        SELECT tweets.id, 't' AS kind, tweets.id AS tweet, tweets.user_id AS author, tweets.user_id AS poster
        FROM source JOIN tweets ON tweets.user_id = source.id
        WHERE tweets.reply_to_id IS NULL AND tweets.deleted_at IS NULL
        UNION ALL
        SELECT retweets.id, 'r', tweets.id, tweets.user_id, retweets.user_id
        FROM source JOIN retweets ON retweets.user_id = source.id JOIN tweets ON tweets.id = retweets.tweet_id
        WHERE tweets.deleted_at IS NULL
    ), visible AS (
        SELECT candidate.id, candidate.kind, candidate.tweet
        FROM candidate
        WHERE NOT EXISTS (
            SELECT FROM unnest(ARRAY[candidate.author, candidate.poster]) AS account
            WHERE account <> viewer
              AND (account IN (SELECT id FROM hidden)
                   OR EXISTS (SELECT FROM users WHERE users.id = account AND users.deleted_at IS NOT NULL)
                   OR EXISTS (SELECT FROM users WHERE users.id = account AND users.protected)
                      AND NOT EXISTS (SELECT FROM follows
                                      WHERE follower_id = viewer AND following_id = account AND accepted)))
    ), newest AS (
        SELECT DISTINCT ON (tweet) id, kind FROM visible ORDER BY tweet, id DESC, kind
    )
    SELECT id, kind FROM newest ORDER BY id DESC, kind LIMIT $2
) AS entry
ORDER BY viewer, entry.id DESC, entry.kind

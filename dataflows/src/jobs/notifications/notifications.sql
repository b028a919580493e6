-- What happened to users in thirty days, for as long as what caused it is there. What is more than an hour ahead has not
-- happened yet.
SELECT concat_ws(' ', "user", place, kind, actor, tweet) AS key, '' AS value
FROM (
    SELECT following_id AS "user", NULL::bigint AS id, CASE WHEN accepted THEN 'follow' ELSE 'follow_request' END AS kind,
           follower_id AS actor, 0 AS tweet, created_at
    FROM follows
    UNION ALL
    SELECT tweets.user_id, NULL, 'like', likes.user_id, tweets.id, likes.created_at
    FROM likes JOIN tweets ON tweets.id = tweet_id AND deleted_at IS NULL
    UNION ALL
    SELECT tweets.user_id, retweets.id, 'retweet', retweets.user_id, tweets.id, retweets.created_at
    FROM retweets JOIN tweets ON tweets.id = tweet_id AND deleted_at IS NULL
    UNION ALL
    SELECT tweets.user_id, reply.id, 'reply', reply.user_id, reply.id, reply.created_at
    FROM tweets AS reply JOIN tweets ON tweets.id = reply.reply_to_id AND tweets.deleted_at IS NULL
    WHERE reply.deleted_at IS NULL
    UNION ALL
    SELECT users.id, tweet, 'mention', author, tweet, mentions.created_at
    FROM (@mentions) AS mentions JOIN users ON lower(username) = name AND deleted_at IS NULL
) AS causes,
LATERAL (SELECT least(greatest(feedmill_micros(created_at), 0), 140737488355327999) AS micros) AS clamped,
LATERAL (SELECT coalesce(id, (micros / 1000 << 16) + micros % 1000) AS place) AS placed
WHERE "user" <> actor AND :time_ms / 60000 - 43200 < floor(feedmill_micros(created_at) / 60000000::numeric)
  AND :time_ms / 60000 + 60 >= floor(feedmill_micros(created_at) / 60000000::numeric)

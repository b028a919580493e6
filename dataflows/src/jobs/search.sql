-- What search finds: tweets and accounts that were not deleted.
SELECT 'tweet ' || id AS key,
       concat_ws(E'\x1f',
           user_id,
           content,
           CASE WHEN media::text <> '[]' THEN 't' ELSE 'f' END,
           feedmill_micros(created_at)) AS value
FROM tweets
WHERE deleted_at IS NULL
UNION ALL
SELECT 'account ' || id, concat_ws(E'\x1f', username, display_name)
FROM users
WHERE deleted_at IS NULL

-- A tweet's row.
SELECT id::text AS key,
       concat_ws(E'\x1f',
           user_id,
           content,
           coalesce(reply_to_id::text, '\N'),
           conversation_id,
           coalesce(media::text, '\N'),
           feedmill_micros(created_at),
           feedmill_micros(updated_at)) AS value
FROM tweets
WHERE deleted_at IS NULL

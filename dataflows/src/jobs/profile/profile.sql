-- A user's row.
SELECT id::text AS key,
       concat_ws(E'\x1f',
           username,
           display_name,
           coalesce(bio, '\N'),
           coalesce(avatar_url, '\N'),
           CASE WHEN verified THEN 't' ELSE 'f' END,
           CASE WHEN protected THEN 't' ELSE 'f' END,
           feedmill_micros(created_at),
           feedmill_micros(updated_at)) AS value
FROM users
WHERE deleted_at IS NULL

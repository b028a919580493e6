-- The first hundred tags of each window, by how many use them, then by how often they do. Each author counts once; those
-- who are protected do not.
SELECT concat_ws(E'\x1f', name, tag) AS key, concat_ws(' ', authors, uses) AS value
FROM (
    SELECT name, tag, count(DISTINCT author) AS authors, count(*) AS uses,
           row_number() OVER (
               PARTITION BY name ORDER BY count(DISTINCT author) DESC, count(*) DESC, tag COLLATE "C") AS place
    FROM (@tags) AS tags, (VALUES ('1h', 60), ('24h', 1440)) AS windows (name, minutes)
    WHERE :time_ms / 60000 - minutes < floor(feedmill_micros(created_at) / 60000000::numeric)
      AND NOT EXISTS (SELECT FROM users WHERE users.id = author AND protected)
    GROUP BY name, tag
) AS ranked
WHERE place <= 100

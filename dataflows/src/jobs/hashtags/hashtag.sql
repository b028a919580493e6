-- Tag to tweets.
SELECT concat_ws(E'\x1f', tag, tweet) AS key, '' AS value
FROM (@tags) AS tags

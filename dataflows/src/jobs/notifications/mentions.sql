-- Each name that a tweet mentions, of a user or not, with ASCII letters in lower case.
SELECT DISTINCT tweets.id AS tweet, tweets.user_id AS author, tweets.created_at, lower(found[1] COLLATE "C") AS name
FROM tweets, regexp_matches(regexp_replace(content, :url_pattern, '\1 ', 'g'), :mention_pattern, 'g') AS found
WHERE deleted_at IS NULL AND content ~ '[@＠]' AND char_length(found[1]) <= 30

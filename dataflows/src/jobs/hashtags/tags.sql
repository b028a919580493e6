-- Each tag of each tweet that was not deleted: links are taken out of the text first, and tags are folded.
SELECT DISTINCT tweets.id AS tweet, tweets.user_id AS author, tweets.created_at,
       normalize(translate(normalize(found[1], NFC), :fold_from, :fold_to), NFC) AS tag
FROM tweets, regexp_matches(regexp_replace(content, :url_pattern, '\1 ', 'g'), :hashtag_pattern, 'g') AS found
WHERE deleted_at IS NULL AND content ~ '[#＃]' AND found[1] ~ :tag_pattern

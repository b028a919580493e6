-- Each reply, deleted or not, by the first tweet of its thread and the replies from there down to it.
WITH RECURSIVE replies AS (
    SELECT conversation_id AS root, ARRAY[id] AS path, id, reply_to_id AS parent, user_id
    FROM tweets
    WHERE reply_to_id = conversation_id AND id <> conversation_id
    UNION ALL
    SELECT root, CASE WHEN cardinality(path) >= 1000 THEN trim_array(path, 1) ELSE path END || reply.id, reply.id,
           reply.reply_to_id, reply.user_id
    FROM replies JOIN tweets AS reply ON reply.reply_to_id = replies.id AND reply.conversation_id = root
    WHERE reply.id <> root
)
SELECT concat_ws(' ', root, array_to_string(path, ' ')) AS key, concat_ws(' ', parent, user_id) AS value
FROM replies

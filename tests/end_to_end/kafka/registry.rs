//! Records as Avro, with a schema registry.

mod servers {
    use std::collections::{BTreeSet, HashMap};

    use apache_avro::{Schema, from_avro_datum};
    use feedmill_connectors::kafka::{Format, KafkaLog, Layout, Topics};
    use feedmill_model::Relation;
    use feedmill_test_servers::{Kafka, SchemaRegistry};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::{Value, json};

    use crate::crash::workload::{PEOPLE, Writer};
    use crate::kafka::estate::{self, Estate, log_in};
    use crate::kafka::{plain, servers::in_postgres};
    use crate::postgres::Postgres;
    use crate::system::System;

    /// A log of its own, as Avro.
    fn avro(registry: &SchemaRegistry) -> KafkaLog {
        let registry = Some(registry.url().parse().unwrap());
        KafkaLog { format: Format::Avro, registry, ..log_in(Kafka::shared(), Layout::Tables) }
    }

    async fn start(to: KafkaLog) -> Estate {
        let postgres = Postgres::new(&["logical_decoding_work_mem = 64kB"]).await;
        let capture = estate::capture(&postgres, &to, &[]);
        let mut estate = Estate { postgres, capture, to };
        estate.capture.go().await;
        estate
    }

    /// Asks a registry, as its documentation says.
    async fn ask(method: reqwest::Method, registry: &SchemaRegistry, path: &str, body: Option<Value>) -> (u16, Value) {
        let http = reqwest::Client::new();
        let mut request = http.request(method, format!("{}/{path}", registry.url()));
        if let Some(body) = body {
            request = request.header("Content-Type", "application/vnd.schemaregistry.v1+json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    }

    async fn latest(registry: &SchemaRegistry, subject: &str) -> Value {
        let path = format!("subjects/{subject}/versions/latest");
        let (status, found) = ask(reqwest::Method::GET, registry, &path, None).await;
        assert_eq!(status, 200, "{found}");
        serde_json::from_str(found["schema"].as_str().unwrap()).unwrap()
    }

    async fn register(registry: &SchemaRegistry, subject: &str, schema: &Value) {
        let body = json!({ "schema": schema.to_string() });
        let path = format!("subjects/{subject}/versions");
        let (status, said) = ask(reqwest::Method::POST, registry, &path, Some(body)).await;
        assert_eq!(status, 200, "{said}");
    }

    /// Reads a topic by the schemas that its records name; or all values by another one than that.
    async fn read(registry: &SchemaRegistry, topic: &str, by: Option<Value>) -> Vec<plain::Record> {
        let id = |bytes: &[u8]| {
            assert_eq!(bytes[0], 0, "the wire format begins with a zero");
            u32::from_be_bytes(bytes[1..5].try_into().unwrap())
        };
        let ids = std::sync::Mutex::new(BTreeSet::new());
        let servers = Kafka::shared().bootstrap();
        let note = |bytes: &[u8]| {
            ids.lock().unwrap().insert(id(bytes));
            Value::Null
        };
        tokio::task::block_in_place(|| plain::records_by(&servers, topic, note));
        let mut schemas = HashMap::new();
        for id in ids.into_inner().unwrap() {
            let (_, found) = ask(reqwest::Method::GET, registry, &format!("schemas/ids/{id}"), None).await;
            schemas.insert(id, Schema::parse_str(found["schema"].as_str().unwrap()).unwrap());
        }
        let by = by.map(|schema| Schema::parse(&schema).unwrap());
        let decode = |bytes: &[u8]| {
            let schema = &schemas[&id(bytes)];
            let is_value = schema.name().is_some_and(|name| name.name == "Envelope");
            let by = by.as_ref().filter(|_| is_value);
            Value::try_from(from_avro_datum(schema, &mut &bytes[5..], by).unwrap()).unwrap()
        };
        tokio::task::block_in_place(|| plain::records_by(&servers, topic, decode))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_table_is_rebuilt_by_who_knows_what_debezium_and_the_registry_document_and_readers_read_it() {
        let registry = SchemaRegistry::shared();
        let mut estate = start(avro(registry)).await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(17), 120).await;
        let sql = estate.postgres.sql().await;
        // A column that is added to a table is none that is published.
        sql.batch_execute("ALTER TABLE users ADD COLUMN nickname text DEFAULT 'x'").await.unwrap();
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(18), 40).await;
        estate.published().await;
        let topics = Topics::of(&estate.to);
        let mut seen = 0;
        for topic in topics.changes().chain(topics.rows()) {
            let mut tables = plain::tables(&read(registry, topic, None).await);
            let table = topic.trim_end_matches(".rows").rsplit('.').next().unwrap();
            let relation = Relation::ALL.into_iter().find(|relation| relation.table() == table).unwrap();
            let published = tables.remove(table).unwrap_or_default();
            assert_eq!(published, in_postgres(&sql, relation).await, "{topic}");
            assert!(tables.is_empty(), "{topic} has records of other tables");
            seen += published.len();
        }
        assert!(seen > 400, "{seen} rows are too few to say anything");
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_column_that_may_be_null_is_added_compatibly_and_who_has_the_older_schema_reads_on() {
        let registry = SchemaRegistry::shared();
        let first = start(avro(registry)).await;
        first.published().await;
        let subject = |to: &KafkaLog| format!("{}.public.tweets-value", to.prefix);
        let schema = latest(registry, &subject(&first.to)).await;
        // What an earlier version would have registered, that did not know of `media`.
        let to = avro(registry);
        let names = |prefix: &str| prefix.replace('-', "_");
        let older = schema.to_string().replace(&names(&first.to.prefix), &names(&to.prefix));
        let mut older: Value = serde_json::from_str(&older).unwrap();
        let columns = older["fields"][0]["type"][1]["fields"].as_array_mut().unwrap();
        let before = columns.len();
        columns.retain(|column| column["name"] != "media");
        assert_eq!(columns.len() + 1, before);
        register(registry, &subject(&to), &older).await;
        let second = start(to).await;
        let mut writer = Writer::new(&second.postgres);
        writer.run(PEOPLE).await;
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(19), 60).await;
        second.published().await;
        let newer = latest(registry, &subject(&second.to)).await;
        assert_ne!(newer, older);
        let topic = format!("{}.public.tweets", second.to.prefix);
        let read = read(registry, &topic, Some(older)).await;
        let rows: Vec<&Value> = read.iter().filter_map(|record| record.value.as_ref()?.get("after")).collect();
        let rows: Vec<&Value> = rows.into_iter().filter(|row| !row.is_null()).collect();
        assert!(rows.len() > 5, "{} rows are too few to say anything", rows.len());
        assert!(rows.iter().all(|row| row["content"].is_string() && row.get("media").is_none()), "{rows:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_schema_that_the_registry_refuses_is_a_stop_that_says_what_to_do() {
        let registry = SchemaRegistry::shared();
        let to = avro(registry);
        let subject = format!("{}.public.users-value", to.prefix);
        let other = json!({
            "type": "record",
            "name": "Envelope",
            "namespace": format!("{}.public.users", to.prefix.replace('-', "_")),
            "fields": [{ "name": "other", "type": "string" }],
        });
        register(registry, &subject, &other).await;
        let postgres = Postgres::new(&[]).await;
        let capture = estate::capture(&postgres, &to, &[]);
        let printed = capture.expect_start_failure().await;
        for told in ["refuses the schema of", &subject, "409", "--topic-prefix", "compatibility"] {
            assert!(printed.contains(told), "{told}: {printed}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_registry_that_is_away_is_waited_for_and_named() {
        let registry = SchemaRegistry::mortal();
        let mut estate = start(avro(&registry)).await;
        estate.published().await;
        estate.capture.interrupt();
        registry.kill();
        Writer::new(&estate.postgres).run(PEOPLE).await;
        estate.capture.spawn().await.unwrap();
        let is_named = async |capture: &System| {
            let health = capture.get("/health", None).await.body;
            health["standsStill"]["stage"] == "kafka" && health.to_string().contains("schema registry")
        };
        estate.capture.until("health names the registry", is_named).await;
        assert!(estate.capture.metric("feedmill_publish_failures_total").await > 0.0);
        registry.start_again();
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_goes_on_in_the_format_in_which_it_began() {
        let mut estate = start(avro(SchemaRegistry::shared())).await;
        estate.published().await;
        estate.capture.interrupt();
        let at = estate.capture.settings.iter().position(|setting| setting == "--topic-format").unwrap();
        let format: Vec<String> = estate.capture.settings.drain(at..at + 2).collect();
        let printed = estate.capture.expect_start_failure().await;
        assert!(printed.contains("--topic-format avro") && printed.contains("--topic-prefix"), "{printed}");
        estate.capture.settings.extend(format);
        estate.capture.go().await;
        Writer::new(&estate.postgres).run(PEOPLE).await;
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_says_what_avro_needs() {
        let mut to = log_in(Kafka::shared(), Layout::Tables);
        let postgres = Postgres::new(&[]).await;
        let mut capture = estate::capture(&postgres, &to, &["--topic-format", "avro"]);
        assert!(capture.expect_start_failure().await.contains("name it with --registry"));
        to.layout = Layout::Subjects;
        let registry = ["--topic-format", "avro", "--registry", "http://me:s3cret@127.0.0.1:1"];
        capture = estate::capture(&postgres, &to, &registry);
        let printed = capture.expect_start_failure().await;
        assert!(printed.contains("--topic-layout must be tables") && !printed.contains("s3cret"), "{printed}");
    }
}

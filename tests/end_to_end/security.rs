//! Roles and certificates.

use crate::certificates::{Authority, file, switch_on};
use crate::postgres::Postgres;
use crate::system::System;

const PASSWORD: &str = "s3cret";

#[tokio::test(flavor = "multi_thread")]
async fn c59_a_role_without_privileges_beyond_its_own_over_tls_alone_and_a_wrong_certificate_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let mut postgres = Postgres::new(&[]).await;
    let superuser = postgres.superuser("postgres").await;
    superuser.batch_execute(&format!("ALTER ROLE feedmill PASSWORD '{PASSWORD}'")).await.unwrap();
    drop(superuser);
    switch_on(&postgres, &authority.sign("db", &["localhost"]), &authority);
    postgres.authenticate(&["local all feedmill trust", "hostssl all feedmill 127.0.0.1/32 scram-sha-256"]);
    postgres.stop_fast();
    postgres.start().await;
    let address = |password: &str, root: &Authority, host: &str| {
        let root = file(folder.path(), "root.crt", &root.certificate);
        format!(
            "postgresql://feedmill:{password}@{host}:{}/feedmill?sslmode=verify-full&channel_binding=require\
             &sslrootcert={}",
            postgres.port,
            root.display()
        )
    };
    let mut system = System::new(&[]);
    system.database_url = Some(address(PASSWORD, &authority, "localhost"));
    system.go().await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let follow = system.post(&format!("/api/follows/{}", ada.id), Some(&ben), serde_json::Value::Null).await;
    assert!((200..300).contains(&follow.status), "{follow:?}");
    let (tweet, token) = system.tweet(&ada, "hello").await;
    assert_eq!(system.home(&ben, Some(&token)).await, [tweet]);
    system.verified().await;

    // All that Feedmill holds open is encrypted, by a role that is no superuser.
    let rows = postgres
        .superuser("postgres")
        .await
        .query(
            "SELECT a.application_name, s.ssl, r.rolsuper FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
             JOIN pg_roles r ON r.oid = a.usesysid WHERE a.application_name LIKE 'feedmill-%'",
            &[],
        )
        .await
        .unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert!(names.contains(&"feedmill-api") && names.contains(&"feedmill-capture"), "{names:?}");
    assert!(rows.iter().all(|row| row.get(1) && !row.get::<_, bool>(2)), "{rows:?}");
    let validated = system.command(&["validate"]).await;
    let printed = String::from_utf8(validated.stdout).unwrap();
    assert!(validated.status.success() && printed.contains("TLSv1.3"), "{printed}");

    // The password is in the environment of the process, and nowhere else.
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", system.pid())).unwrap();
    let metrics = system.http.get(format!("{}/metrics", system.url)).send().await.unwrap().text().await.unwrap();
    let configured = system.command(&["config"]).await;
    let configured = String::from_utf8(configured.stdout).unwrap();
    assert!(configured.contains("sslmode=verify-full"), "{configured}");
    for text in [&arguments, &metrics, &configured, &printed, &system.log()] {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    system.interrupt();

    for (address, word) in [
        (address("wr0ng", &authority, "localhost"), "password authentication failed"),
        (address(PASSWORD, &authority, "127.0.0.1"), "is for localhost, not for 127.0.0.1"),
        (address(PASSWORD, &other, "localhost"), "is not by an authority in"),
        (address(PASSWORD, &authority, "localhost").replace("verify-full", "disable"), "pg_hba.conf"),
    ] {
        // The file of the authority is written anew for each.
        let root = if word.starts_with("is not by") { &other } else { &authority };
        file(folder.path(), "root.crt", &root.certificate);
        system.database_url = Some(address);
        let printed = system.expect_start_failure().await;
        assert!(printed.contains(word), "{printed}");
        assert!(!printed.contains(PASSWORD) && !printed.contains("wr0ng"), "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_address_does_not_say_is_found_where_libpq_users_put_it() {
    let home = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let mut postgres = Postgres::new(&[]).await;
    postgres.role("ada", "LOGIN REPLICATION").await;
    let superuser = postgres.superuser("postgres").await;
    superuser.batch_execute(&format!("ALTER ROLE feedmill PASSWORD '{PASSWORD}'")).await.unwrap();
    drop(superuser);
    switch_on(&postgres, &authority.sign("db", &["localhost"]), &authority);
    let rules = ["hostssl all feedmill 127.0.0.1/32 scram-sha-256", "hostssl all ada 127.0.0.1/32 cert"];
    postgres.authenticate(&rules);
    postgres.stop_fast();
    postgres.start().await;
    let good = file(home.path(), "good.crt", &authority.certificate);
    let wrong = file(home.path(), "wrong.crt", &other.certificate);
    let (ada, port) = (authority.sign("ada", &[]), postgres.port);
    std::fs::create_dir(home.path().join(".postgresql")).unwrap();
    file(home.path(), ".pgpass", &format!("localhost:*:*:feedmill:{PASSWORD}\n"));
    file(home.path(), ".postgresql/root.crt", &authority.certificate);
    file(home.path(), ".postgresql/postgresql.crt", &ada.certificate);
    file(home.path(), ".postgresql/postgresql.key", &ada.key);
    let (good, wrong, here) = (good.to_str().unwrap(), wrong.to_str().unwrap(), home.path().to_str().unwrap());

    let mut system = System::new(&[]);
    for (role, options, variables, said) in [
        (
            "feedmill",
            "?sslrootcert=system",
            vec![("SSL_CERT_FILE", good), ("PGPASSWORD", PASSWORD), ("HOME", "/nowhere")],
            "sslmode=verify-full",
        ),
        (
            "feedmill",
            "?sslrootcert=system",
            vec![("SSL_CERT_FILE", wrong), ("PGPASSWORD", PASSWORD), ("HOME", "/nowhere")],
            "is not by an authority in the certificates that this machine trusts",
        ),
        (
            "feedmill",
            "",
            vec![("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", good), ("PGPASSFILE", "/nowhere"), ("HOME", here)],
            "password",
        ),
        ("feedmill", "", vec![("PGSSLMODE", "verify-full"), ("HOME", here)], "sslmode=verify-full"),
        ("feedmill", "?sslmode=verify-ca", vec![("PGSSLMODE", "disable"), ("HOME", here)], "sslmode=verify-ca"),
        ("ada", "?sslmode=verify-ca", vec![("HOME", here)], "sslmode=verify-ca"),
        ("ada", "?sslmode=require", vec![("HOME", "/nowhere")], "valid client certificate"),
    ] {
        system.database_url = Some(format!("postgresql://{role}@localhost:{port}/feedmill{options}"));
        let mut command = system.prepare(&["validate"]);
        command.envs(variables.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let line = printed
            .lines()
            .find(|line| line.starts_with("encryption") || line.starts_with("connection ") && line.contains(" fail "));
        let line = line.unwrap_or_else(|| panic!("{printed}"));
        assert!(line.contains(said) && !printed.contains(PASSWORD), "{role} {options} {variables:?}: {printed}");
    }
}

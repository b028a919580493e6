//! The description of the API (OpenAPI 3.1), made from the code that answers, and a page to browse it.
//!
//! ```text
//!   handlers ──#[utoipa::path]──► document ─ complete ─┬─► /openapi.json   for programs
//!   bodies ────ToSchema──────────►                     └─► /docs           for people, with assets that are in the binary
//! ```
//!
//! What layers do for many operations (headers, and 304 for who has the answer already) no handler says: [`complete`] adds it,
//! by what the layers go by.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    self, ComponentsBuilder, HeaderBuilder, InfoBuilder, LicenseBuilder, Object, OpenApiBuilder, Ref, RefOr, Required,
    ResponseBuilder, Type,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_swagger_ui::SwaggerUi;

use crate::problem::ProblemBody;
use crate::state::Shared;

/// The page's own scripts and styles, and no others.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                           frame-ancestors 'none'";

/// What stands in the document beside the operations.
pub(crate) fn document() -> openapi::OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("The `token` of a session, as registration and login give it."));
    let told = "A ticket of POST /api/stream/ticket, for clients that cannot send `Authorization`.";
    let ticket = SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::with_description("ticket", told)));
    let components = ComponentsBuilder::new()
        .security_scheme("token", SecurityScheme::Http(bearer.build()))
        .security_scheme("ticket", ticket)
        .schema(ProblemBody::name(), ProblemBody::schema());
    let info = InfoBuilder::new()
        .title("Feedmill")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Writes go to PostgreSQL, and answer with an `X-Consistency-Token`. Reads are of views that follow it; a \
             read that is given the token sees the write, and each says in `X-Feedmill-Time` as of when it is. Ids are \
             decimal text of 64 bits, times RFC 3339 in UTC.",
        ))
        .license(Some(LicenseBuilder::new().name(env!("CARGO_PKG_LICENSE")).build()));
    OpenApiBuilder::new().info(info.build()).components(Some(components.build())).build()
}

const CONSISTENCY_TOKEN: &str = "X-Consistency-Token";
const TIME: &str = "X-Feedmill-Time";
const LAG_MS: &str = "X-Feedmill-Lag-Ms";
const ETAG: &str = "ETag";
const LINK: &str = "Link";
const IF_NONE_MATCH: &str = "If-None-Match";
const RATE_LIMIT: [&str; 2] = ["RateLimit", "RateLimit-Policy"];

/// Headers of answers.
const HEADERS: [(&str, Type, &str); 8] = [
    (ETAG, Type::String, "The version of the answer, for `If-None-Match`."),
    (LINK, Type::String, "The next page, if there is one: `<…>; rel=\"next\"`."),
    ("Retry-After", Type::Integer, "With 429 and 503: after how many seconds to ask again."),
    (CONSISTENCY_TOKEN, Type::String, "Sent with a read, it has the answer hold this write."),
    (TIME, Type::Integer, "The time that the views had reached, in milliseconds since 1970."),
    (LAG_MS, Type::Integer, "How many milliseconds before the answer that was."),
    (RATE_LIMIT[0], Type::String, "How much may still be asked."),
    (RATE_LIMIT[1], Type::String, "How much may be asked in which time."),
];

/// Headers of requests.
const ASKED: [(&str, &str); 2] = [
    (CONSISTENCY_TOKEN, "The header of that name of a write, which the answer then holds."),
    (IF_NONE_MATCH, "The `ETag` of an answer that the client has: it is not sent again."),
];

/// What changes something, and is no write that a read could hold.
const NO_WRITES: [&str; 4] = ["/api/auth/login", "/api/auth/refresh", "/api/auth/logout", "/api/stream/ticket"];

/// Adds what is the same for many operations.
fn complete(mut document: openapi::OpenApi) -> openapi::OpenApi {
    let components = document.components.get_or_insert_default();
    for (name, is, told) in HEADERS {
        let header = HeaderBuilder::new().schema(Some(Object::with_type(is))).description(Some(told));
        components.headers.insert(name.to_owned(), header.build().into());
    }
    for (name, told) in ASKED {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header).description(Some(told));
        let parameter = parameter.required(Required::False).schema(Some(Object::with_type(Type::String)));
        components.parameters.insert(name.to_owned(), parameter.build().into());
    }
    let told = "The client has the answer already, by `If-None-Match`.";
    components.responses.insert("NotModified".to_owned(), ResponseBuilder::new().description(told).build().into());
    for (path, item) in document.paths.paths.iter_mut().filter(|(path, _)| path.starts_with("/api/")) {
        if let Some(read) = &mut item.get {
            complete_read(path, read);
        }
        for change in [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten() {
            let is_write = !NO_WRITES.contains(&path.as_str());
            add_headers(change, |status| status.starts_with('2') && is_write, &[CONSISTENCY_TOKEN]);
        }
        for any in
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
        {
            add_headers(any, |status| status.starts_with('2') || status == "default", &RATE_LIMIT);
            add_headers(any, |status| status == "default", &["Retry-After"]);
        }
    }
    document
}

/// JSON that is read is of the views, but for one's own account; and it has a version, but for what nobody keeps.
fn complete_read(path: &str, read: &mut Operation) {
    let is_json = |response: &RefOr<openapi::Response>| match response {
        RefOr::T(response) => response.content.contains_key("application/json"),
        RefOr::Ref(_) => false,
    };
    if !read.responses.responses.get("200").is_some_and(is_json) {
        return;
    }
    let (mut asked, mut headers) = (Vec::new(), Vec::new());
    let parameters = read.parameters.get_or_insert_default();
    if parameters.iter().any(|parameter| matches!(parameter, RefOr::T(it) if it.name == "cursor")) {
        headers.push(LINK);
    }
    if path != "/api/users/me" {
        asked.push(CONSISTENCY_TOKEN);
        headers.extend([TIME, LAG_MS]);
    }
    if !path.starts_with("/api/auth/") {
        asked.push(IF_NONE_MATCH);
        headers.push(ETAG);
        read.responses.responses.insert("304".to_owned(), Ref::from_response_name("NotModified").into());
    }
    parameters.extend(asked.iter().map(|name| RefOr::Ref(Ref::new(format!("#/components/parameters/{name}")))));
    add_headers(read, |status| status == "200", &headers);
}

/// Adds headers to the answers with some statuses.
fn add_headers(operation: &mut Operation, has: impl Fn(&str) -> bool, headers: &[&str]) {
    for (_, response) in operation.responses.responses.iter_mut().filter(|(status, _)| has(status)) {
        if let RefOr::T(response) = response {
            let header =
                |name: &&str| ((*name).to_owned(), RefOr::Ref(Ref::new(format!("#/components/headers/{name}"))));
            response.headers.extend(headers.iter().map(header));
        }
    }
}

/// `/openapi.json` and `/docs`.
pub(crate) fn pages(document: openapi::OpenApi) -> Router<Shared> {
    let document = complete(document);
    let policy = async |mut response: Response| {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
        response
    };
    Router::from(SwaggerUi::new("/docs").url("/openapi.json", document)).layer(map_response(policy))
}

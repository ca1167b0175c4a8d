//! The sample API by itself, without a gateway.

use super::*;

async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.bearer_auth("t0ken").send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn every_route_answers_and_is_counted() {
    let desk = start("t0ken".to_owned()).await.unwrap();
    let client = reqwest::Client::new();
    let at = |path: &str| format!("{}{path}", desk.url());

    let customer = send(client.get(at("/customers/c_1001"))).await;
    assert_eq!(
        (customer.0, &customer.1["name"]),
        (200, &json!("Ines Duarte"))
    );
    assert_eq!(send(client.get(at("/customers/c_9"))).await.0, 404);
    let closed = json!({"status": "closed", "note": "done"});
    assert_eq!(
        send(client.patch(at("/tickets/tkt_1")).json(&closed)).await,
        (
            200,
            json!({"id": "tkt_1", "status": "closed", "assignee": null, "notes": 1})
        )
    );
    let refund = json!({"customer": "cus_1", "amount_cents": 1200, "currency": "EUR"});
    let paid = |id: &str| {
        let mut paid = refund.clone();
        paid["refund"] = json!(id);
        paid["status"] = json!("succeeded");
        (201, paid)
    };
    let json_refund = client
        .post(at("/refunds"))
        .header("toolgate-call", "call_1")
        .json(&refund);
    assert_eq!(send(json_refund).await, paid("rf_1"));
    let form = client
        .post(at("/refunds"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body("customer=cus_1&amount_cents=1200&currency=EUR");
    assert_eq!(send(form).await, paid("rf_2"));
    assert_eq!(
        send(client.post(at("/refunds")).json(&json!({}))).await.0,
        422
    );
    let mail = json!({"to": "a@example.com", "subject": "s", "body": "b"});
    assert_eq!(
        send(client.post(at("/mail")).json(&mail)).await,
        (202, json!({"message": "msg_1", "status": "queued"}))
    );
    let role = json!({"role": "admin"});
    assert_eq!(
        send(client.put(at("/users/u_1/role")).json(&role)).await,
        (200, json!({"id": "u_1", "role": "admin"}))
    );
    assert_eq!(send(client.delete(at("/records/r_1"))).await.0, 200);
    assert_eq!(send(client.delete(at("/records/r_1"))).await.0, 404);
    assert_eq!(send(client.get(at("/nowhere"))).await.0, 404);

    let received: Value = client
        .get(at("/_received"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(received, desk.received());
    assert_eq!(received["total"], 11);
    assert_eq!(received["by_route"]["POST /refunds"], 3);
    assert_eq!(received["by_route"]["other"], 1);
    assert_eq!(received["requests"][3]["call"], "call_1");
    assert_eq!(received["requests"][4]["body"]["amount_cents"], "1200");
    assert_eq!(received["requests"][4]["call"], Value::Null);
}

#[tokio::test]
async fn a_wrong_token_changes_nothing_and_is_counted() {
    let desk = start("t0ken".to_owned()).await.unwrap();
    let delete = format!("{}/records/r_1", desk.url());
    let client = reqwest::Client::new();
    for request in [
        client.delete(&delete),
        client.delete(&delete).bearer_auth("t0ke"),
    ] {
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert_eq!(desk.received()["requests"][1]["status"], 401);
    assert_eq!(send(client.delete(&delete)).await.0, 200);
}

#[tokio::test]
async fn a_dropped_desk_is_gone_for_open_connections_too() {
    let desk = start("t0ken".to_owned()).await.unwrap();
    let url = format!("{}/customers/42", desk.url());
    let client = reqwest::Client::new();
    assert_eq!(send(client.get(&url)).await.0, 200);
    drop(desk);
    tokio::task::yield_now().await;
    assert!(client.get(&url).bearer_auth("t0ken").send().await.is_err());
}

#[test]
fn what_is_remembered_is_bounded_and_the_count_goes_on() {
    let mut world = World::seeded();
    for number in 0..MAX_REMEMBERED + 5 {
        world.remember("other", json!(number));
    }
    assert_eq!(world.remembered.len(), MAX_REMEMBERED);
    assert_eq!(world.remembered.front(), Some(&json!(5)));
    assert_eq!(world.received()["total"], MAX_REMEMBERED + 5);
}

// node-postgres (`pg`) with pg.Pool, by the contract of ../README.md. COPY is pg-copy-streams.
// Next on the path: postgres.mjs.

import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { pipeline as stream } from "node:stream/promises";
import { text } from "node:stream/consumers";
import pg from "pg";
import copyStreams from "pg-copy-streams";
import * as contract from "./contract.mjs";

const { expect, expectError } = contract;
const version = createRequire(import.meta.url)("pg/package.json").version;

async function value(connection, tag) {
  const { rows } = await connection.query("SELECT $1::int AS value", [tag]);
  expect(rows, [{ value: tag }]);
}

/** Borrows a client of the pool for the time of `work`. */
async function borrowed(pool, work) {
  const client = await pool.connect();
  try {
    await work(client);
  } finally {
    client.release();
  }
}

async function connect(place, tag) {
  const client = new pg.Client(place);
  await client.connect();
  try {
    await value(client, tag);
  } finally {
    await client.end();
  }
}

async function prepared(pool, tag) {
  await borrowed(pool, async (client) => {
    for (const [statement, parameter, row] of contract.preparedTurns(tag)) {
      expect((await client.query(statement, [parameter])).rows, [row]);
      const named = { name: statement.slice(-8), text: statement, values: [parameter] };
      expect((await client.query(named)).rows, [row]);
    }
  });
}

async function pipeline(pool, tag) {
  await borrowed(pool, async (client) => {
    const wanted = Array.from({ length: contract.STATEMENTS }, (_, n) => tag * 100 + n);
    const sent = wanted.map((n) => client.query("SELECT $1::int AS value", [n]));
    const results = await Promise.all(sent);
    expect(results.map(({ rows }) => rows[0].value), wanted);
  });
}

async function copy(pool, tag) {
  await borrowed(pool, async (client) => {
    const into = client.query(copyStreams.from(contract.COPY_IN));
    await stream(Readable.from([contract.copyText(tag)]), into);
    const out = client.query(copyStreams.to(contract.copyOut(tag)));
    expect(await text(out), contract.copyText(tag));
  });
}

async function keep(client, tag, part) {
  await client.query("INSERT INTO kept VALUES ($1, $2)", [tag, part]);
}

async function transaction(pool, tag) {
  await borrowed(pool, async (client) => {
    await client.query("BEGIN");
    await keep(client, tag, "committed");
    await client.query("COMMIT");
    await client.query("BEGIN");
    await keep(client, tag, "rolled back");
    await client.query("ROLLBACK");
    await client.query("BEGIN");
    await keep(client, tag, "outer");
    await client.query("SAVEPOINT here");
    await keep(client, tag, "inner");
    await client.query("ROLLBACK TO SAVEPOINT here");
    await client.query("COMMIT");
    const query = "SELECT part FROM kept WHERE tag = $1 ORDER BY part";
    const { rows } = await client.query(query, [tag]);
    expect(rows.map(({ part }) => part).join(" "), contract.KEPT);
  });
}

async function error(pool, tag) {
  await borrowed(pool, async (client) => {
    await expectError(client.query("SELECT 1 / $1::int", [0]), "22012");
    await value(client, tag);
    await client.query("BEGIN");
    await value(client, tag);
    await expectError(client.query("SELECT 1 / $1::int", [0]), "22012");
    await expectError(client.query("SELECT 1"), "25P02");
    await client.query("ROLLBACK");
    await value(client, tag);
  });
}

/** Is cut off by `Client.cancel`, which opens a connection for the request. */
async function cancel(pool, tag) {
  await borrowed(pool, async (client) => {
    const query = new pg.Query(contract.SLEEP);
    const ended = new Promise((resolve, reject) => {
      query.on("end", resolve);
      query.on("error", reject);
    });
    const canceller = new pg.Client(pool.options);
    const sent = new Promise((resolve) => {
      canceller.connection.stream.on("close", resolve);
    });
    const timer = setTimeout(() => canceller.cancel(client, query), contract.CUT_AFTER_MS);
    client.query(query);
    try {
      await contract.inTime(expectError(ended, "57014"));
    } finally {
      clearTimeout(timer);
    }
    await sent;
    await value(client, tag);
  });
}

async function beside(pool, tag) {
  for (let turn = 0; turn < contract.BESIDE; turn += 1) {
    await value(pool, tag);
  }
}

await contract.run({
  driver: "node pg",
  version,
  pool: "pg.Pool",
  openPool: (place, clients, step) =>
    new pg.Pool({ ...place, max: clients, pipeline: step === "pipeline" }),
  closePool: (pool) => pool.end(),
  connect,
  prepared,
  pipeline,
  copy,
  transaction,
  error,
  cancel,
  beside,
});

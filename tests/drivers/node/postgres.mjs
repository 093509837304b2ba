// postgres.js, which is its own pool, by the contract of ../README.md.
// Next on the path: ../go/contract.go.

import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { pipeline as stream } from "node:stream/promises";
import { text } from "node:stream/consumers";
import { readFileSync } from "node:fs";
import postgres from "postgres";
import * as contract from "./contract.mjs";

const { expect, expectError } = contract;
const entry = createRequire(import.meta.url).resolve("postgres");
const folder = entry.slice(0, entry.lastIndexOf("/postgres/") + "/postgres/".length);
const { version } = JSON.parse(readFileSync(`${folder}package.json`, "utf8"));

async function value(sql, tag) {
  const rows = await sql`SELECT ${tag}::int AS value`;
  expect([...rows], [{ value: tag }]);
}

/** Reserves a connection of the pool for the time of `work`. */
async function borrowed(sql, work) {
  const reserved = await sql.reserve();
  try {
    await work(reserved);
  } finally {
    reserved.release();
  }
}

async function connect(place, tag) {
  const sql = postgres({ ...place, max: 1 });
  try {
    await value(sql, tag);
  } finally {
    await sql.end();
  }
}

async function prepared(pool, tag) {
  await borrowed(pool, async (sql) => {
    for (const [statement, parameter, row] of contract.preparedTurns(tag)) {
      expect([...(await sql.unsafe(statement, [parameter], { prepare: true }))], [row]);
      expect([...(await sql.unsafe(statement, [parameter]))], [row]);
    }
    for (let turn = 0; turn < 7; turn += 1) {
      await value(sql, tag * 100 + turn);
    }
  });
}

async function pipeline(pool, tag) {
  await borrowed(pool, async (sql) => {
    const wanted = Array.from({ length: contract.STATEMENTS }, (_, n) => tag * 100 + n);
    const results = await Promise.all(wanted.map((n) => sql`SELECT ${n}::int AS value`));
    expect(results.map(([row]) => row.value), wanted);
  });
}

async function copy(pool, tag) {
  await borrowed(pool, async (sql) => {
    const into = await sql.unsafe(contract.COPY_IN).writable();
    await stream(Readable.from([contract.copyText(tag)]), into);
    const out = await sql.unsafe(contract.copyOut(tag)).readable();
    expect(await text(out), contract.copyText(tag));
  });
}

async function keep(sql, tag, part) {
  await sql`INSERT INTO kept VALUES (${tag}, ${part})`;
}

/** Runs `begin` (a transaction or savepoint) with one row and takes it back. */
async function undone(begin, tag, part) {
  const undo = new Error("undo");
  try {
    await begin(async (sql) => {
      await keep(sql, tag, part);
      throw undo;
    });
  } catch (thrown) {
    if (thrown !== undo) {
      throw thrown;
    }
  }
}

async function transaction(pool, tag) {
  await pool.begin((sql) => keep(sql, tag, "committed"));
  await undone((work) => pool.begin(work), tag, "rolled back");
  await pool.begin(async (sql) => {
    await keep(sql, tag, "outer");
    await undone((work) => sql.savepoint(work), tag, "inner");
  });
  const rows = await pool`SELECT part FROM kept WHERE tag = ${tag} ORDER BY part`;
  expect(rows.map(({ part }) => part).join(" "), contract.KEPT);
}

async function error(pool, tag) {
  await borrowed(pool, async (sql) => {
    await expectError(sql`SELECT 1 / ${0}::int`, "22012");
    await value(sql, tag);
  });
  const block = pool.begin(async (sql) => {
    await value(sql, tag);
    await expectError(sql`SELECT 1 / ${0}::int`, "22012");
    await expectError(sql`SELECT 1`, "25P02");
  });
  await expectError(block, "22012"); // begin() rejects with the first error inside
  await value(pool, tag);
}

/** Is cut off by the query's `cancel`. */
async function cancel(pool, tag) {
  await borrowed(pool, async (sql) => {
    const query = sql.unsafe(contract.SLEEP);
    let cancelled;
    const timer = setTimeout(() => {
      cancelled = query.cancel();
    }, contract.CUT_AFTER_MS);
    try {
      await contract.inTime(expectError(query, "57014"));
    } finally {
      clearTimeout(timer);
    }
    await cancelled;
    await value(sql, tag);
  });
}

async function beside(pool, tag) {
  for (let turn = 0; turn < contract.BESIDE; turn += 1) {
    await value(pool, tag);
  }
}

await contract.run({
  driver: "postgres.js",
  version,
  pool: "its own",
  openPool: (place, clients) => postgres({ ...place, max: clients }),
  closePool: (sql) => sql.end(),
  connect,
  prepared,
  pipeline,
  copy,
  transaction,
  error,
  cancel,
  beside,
});

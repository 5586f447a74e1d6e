// The library in a page in Chromium, against the program: what Node cannot show. It is no part of `npm test`, since it needs a browser:
//
//   apt-get install chromium && npm install playwright-core@1.65.1
//   PORTCULLIS=.../portcullis node .../browser.mjs
//
// playwright-core is taken from the working directory. CHROMIUM is the browser, /usr/bin/chromium if unset.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { after, before, test } from 'node:test';
import { startApplication, startProxy } from './faults.mjs';
import { adminToken, answer, startGate } from './gate.mjs';

const { chromium } = createRequire(`${process.cwd()}/`)('playwright-core');
const root = new URL('..', import.meta.url);
const types = { html: 'text/html', js: 'text/javascript' };

let browser;
let server;
let home;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
  server = createServer(async (request, response) => { // the built library and its examples
    const path = new URL(request.url, 'http://localhost').pathname;
    try {
      const body = await readFile(fileURLToPath(new URL(`.${path}`, root)));
      response.setHeader('Content-Type', types[path.split('.').pop()] ?? 'application/octet-stream').end(body);
    } catch {
      response.writeHead(404).end();
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  home = `http://127.0.0.1:${server.address().port}`;
});

after(async () => {
  await browser?.close();
  server?.close();
});

// open opens a page that has the library as Portcullis, and a socket of it as socket; log is what came to pass.
async function open(t, gate, options = {}) {
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  await page.goto(`${home}/examples/three.html?gate=ws://127.0.0.1:1/`); // any page of this origin
  await page.evaluate(async ([url, more]) => {
    const { default: Portcullis } = await import('/dist/index.js');
    const log = globalThis.log = [];
    const socket = globalThis.socket = new Portcullis(url, { token: () => 'token', backoff: { min: 50, max: 200 }, ...more });
    socket.addEventListener('open', () => log.push('open'));
    socket.addEventListener('message', ({ data }) => log.push(data));
    socket.addEventListener('reconnecting', ({ code }) => log.push(`lost ${code}`));
    socket.addEventListener('close', ({ code, reason }) => log.push(`closed ${code} ${reason}`));
    globalThis.until = async (entry) => {
      for (let i = 0; i < 200 && !log.includes(entry); i++) await new Promise((resolve) => { setTimeout(resolve, 50); });
      return log.splice(0);
    };
  }, [gate.url, options]);
  return { context, page, until: (entry) => page.evaluate((wanted) => globalThis.until(wanted), entry) };
}

const kick = (gate, code) => fetch(`http://${gate.admin}/api/sessions?all=true&code=${code}`, { method: 'DELETE', headers: { Authorization: `Bearer ${adminToken}` } });

test('a token as a subprotocol, an echo, and a kick', async (t) => {
  const gate = await startGate(t);
  const { page, until } = await open(t, gate);
  assert.deepEqual(await until('open'), ['open']);
  assert.equal(await page.evaluate(() => globalThis.socket.send('hello')), true);
  assert.deepEqual(await until(answer('hello')), [answer('hello')]);
  await kick(gate, 3003);
  assert.deepEqual(await until('closed 3003 '), ['closed 3003 ']);
});

test('it waits for the network', async (t) => {
  const gate = await startGate(t);
  const { context, page, until } = await open(t, gate);
  await until('open');
  await context.setOffline(true);
  await kick(gate, 3008);
  const lost = await until('lost 3008');
  assert.equal(lost[0], 'lost 3008');
  await page.waitForTimeout(1000); // five times the longest wait
  assert.deepEqual(await page.evaluate(() => globalThis.log), [], 'an attempt without a network');
  await context.setOffline(false);
  assert.deepEqual(await until('open'), ['open']);
});

test('it waits for the page to be seen', async (t) => {
  const gate = await startGate(t);
  const { page, until } = await open(t, gate);
  await until('open');
  await hide(page, true);
  await kick(gate, 3008);
  assert.deepEqual(await until('lost 3008'), ['lost 3008']);
  await page.waitForTimeout(1000);
  assert.deepEqual(await page.evaluate(() => globalThis.log), [], 'an attempt of a page that nobody sees');
  await hide(page, false);
  assert.deepEqual(await until('open'), ['open']);
});

// hide has the page believe that nobody sees it, or that somebody does.
const hide = (page, hidden) => page.evaluate((value) => {
  Object.defineProperty(document, 'hidden', { value, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}, hidden);

test('numbered streams, while the network comes and goes and the page is blocked and hidden', async (t) => {
  let sent = 0;
  const app = await startApplication(t, (upstream) => { for (let i = 0; i < 3; i += 1) upstream.send(`d${sent++}`); });
  const gate = await startGate(t, { UPSTREAM_URL: app.url, AUTH_MODE: 'none', AUTH_TOKEN_FROM: '', RATE_AUTH_FAILURES_PER_IP: '',
    RESUME: '20s', RESUME_BUFFER: '16KiB', MESSAGE_MAX_BYTES: '1KiB' });
  const proxy = await startProxy(t, gate.front);
  const { context, page, until } = await open(t, { url: `ws://${proxy.address}/` }, {});
  assert.deepEqual(await until('open'), ['open']);
  await page.evaluate(() => {
    globalThis.log.length = 0;
    globalThis.socket.addEventListener('resumed', () => globalThis.log.push('resumed'));
    globalThis.socket.addEventListener('reset', () => globalThis.log.push('reset'));
    let n = 0;
    globalThis.sending = setInterval(() => { if (globalThis.socket.send(`u${n}`)) n += 1; }, 10);
    globalThis.sent = () => { clearInterval(globalThis.sending); return n; };
  });
  const goes = async () => { // the stream goes on, on a connection that is new
    const link = proxy.last();
    const had = app.got.length;
    for (let i = 0; i < 1000 && (app.got.length < had + 20 || proxy.last().down < 1000); i += 1) await page.waitForTimeout(20);
    assert.ok(app.got.length >= had + 20, 'the stream goes on');
    return link;
  };
  await goes();
  for (const fault of ['reset', 'end', 'stall', 'half', 'reset']) {
    await context.setOffline(true); // which a page is told, and which keeps it from new connections alone
    proxy.last()[fault]();
    await page.waitForTimeout(300);
    await context.setOffline(false);
    await goes();
  }
  await page.evaluate(() => { for (const end = Date.now() + 4000; Date.now() < end;); }); // blocked
  await goes();
  await hide(page, true);
  proxy.last().reset();
  await page.waitForTimeout(1000);
  await hide(page, false);
  await goes();
  const n = await page.evaluate(() => globalThis.sent());
  let log;
  for (let i = 0; i < 500; i += 1) {
    log = await page.evaluate(() => globalThis.log);
    if (app.got.length >= n && log.filter((entry) => entry[0] === 'd').length >= 3 * n) break;
    await page.waitForTimeout(20);
  }
  assert.deepEqual(app.got, Array.from({ length: n }, (_, i) => `u${i}`));
  assert.deepEqual(log.filter((entry) => entry[0] === 'd'), Array.from({ length: 3 * n }, (_, i) => `d${i}`));
  assert.ok(!log.includes('reset') && !log.includes('open'));
  assert.ok(log.filter((entry) => entry === 'resumed').length >= 6);
  assert.equal(app.sockets.length, 1);
});

test('the example of three clients', async (t) => {
  const gate = await startGate(t, { REFUSE_WITH_CLOSE: 'true' });
  const page = await browser.newPage();
  t.after(() => page.close());
  await page.goto(`${home}/examples/three.html?gate=${encodeURIComponent(gate.url)}`);
  await page.getByText(answer('Olá')).waitFor();
  await page.getByText('closed with 3000: the token is not accepted').waitFor({ timeout: 20_000 });
  await page.getByText('closed with 3000: a token is required').waitFor();
});

test('the example of a chat', async (t) => {
  const gate = await startGate(t);
  const page = await browser.newPage();
  t.after(() => page.close());
  await page.goto(`${home}/examples/chat.html?gate=${encodeURIComponent(gate.url)}`);
  await page.getByText('connected').waitFor();
  await page.getByLabel('Message', { exact: true }).fill('hello from a page');
  await page.getByRole('button', { name: 'Send' }).click();
  await page.getByText(answer('hello from a page')).waitFor();
});

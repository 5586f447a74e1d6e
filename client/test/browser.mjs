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
  const hide = (hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { value, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  await hide(true);
  await kick(gate, 3008);
  assert.deepEqual(await until('lost 3008'), ['lost 3008']);
  await page.waitForTimeout(1000);
  assert.deepEqual(await page.evaluate(() => globalThis.log), [], 'an attempt of a page that nobody sees');
  await hide(false);
  assert.deepEqual(await until('open'), ['open']);
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

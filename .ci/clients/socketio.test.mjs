// socket.io begins with long polling on plain HTTP and goes over to a WebSocket: both have to reach one instance of the application.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { chromium } from 'playwright-core';
import { Server } from 'socket.io';
import { io } from 'socket.io-client';
import { listen, next, startGate, until } from './kit.mjs';

const page = '<!doctype html><title>chat</title><script src="/socket.io/socket.io.js"></script>';

/** Starts an instance that tells its name, and answers what it is sent. */
async function startInstance(t, name) {
  const server = createServer((request, response) => response.setHeader('Content-Type', 'text/html').end(page));
  const app = new Server(server);
  app.on('connection', (socket) => {
    socket.emit('name', name);
    socket.on('say', (text, acknowledge) => acknowledge(`${name}: ${text}`));
  });
  t.after(() => app.close());
  return listen(t, server);
}

test('in Node, over two instances, by the address of the client', async (t) => {
  const instances = [await startInstance(t, 'a'), await startInstance(t, 'b')];
  const gate = await startGate(t, instances, { HTTP_MODE: 'auth', UPSTREAM_BALANCE: 'hash:address' });
  const names = new Set();
  for (let i = 0; i < 4; i++) {
    const socket = io(`http://${gate.host}`, { query: { token: 'sesame' }, forceNew: true, reconnectionDelay: 50 });
    t.after(() => socket.close());
    const [name] = await next(socket, 'name');
    names.add(name);
    assert.equal(await socket.emitWithAck('say', 'olá'), `${name}: olá`);
    await until(() => socket.io.engine.transport.name === 'websocket', 'the upgrade to a WebSocket');
    assert.equal(await socket.emitWithAck('say', 'x'.repeat(200_000)), `${name}: ${'x'.repeat(200_000)}`);
    if (i > 0) continue;
    const again = next(socket, 'name');
    assert.equal((await gate.kick()).reached, 1);
    assert.deepEqual(await again, [name]); // it has come back by itself
  }
  assert.equal(names.size, 1);
});

test('in Node, with a wrong token', async (t) => {
  const gate = await startGate(t, [await startInstance(t, 'a')], { HTTP_MODE: 'auth' });
  const socket = io(`http://${gate.host}`, { query: { token: 'guess' }, reconnection: false });
  t.after(() => socket.close());
  const [error] = await next(socket, 'connect_error');
  assert.equal(error.description, 401);
});

test('in Chromium, over two instances, by the cookie of the gate', async (t) => {
  const instances = [await startInstance(t, 'a'), await startInstance(t, 'b')];
  const gate = await startGate(t, instances, { HTTP_MODE: 'open', UPSTREAM_BALANCE: 'sticky' });
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
  t.after(() => browser.close());
  for (let i = 0; i < 6; i++) { // each its own jar of cookies
    const context = await browser.newContext();
    const tab = await context.newPage();
    await tab.goto(`http://${gate.host}/`);
    const said = await tab.evaluate(() => new Promise((resolve, reject) => {
      const socket = globalThis.io({ query: { token: 'sesame' } });
      socket.on('connect_error', reject);
      socket.on('name', (name) => {
        const overWebSocket = async () => resolve([name, await socket.emitWithAck('say', 'olá'), socket.io.engine.transport.name]);
        if (socket.io.engine.transport.name === 'websocket') overWebSocket();
        else socket.io.engine.once('upgrade', overWebSocket);
      });
    }));
    assert.deepEqual(said.slice(1), [`${said[0]}: olá`, 'websocket']);
    const [cookie] = (await context.cookies()).filter(({ name }) => name === 'portcullis_target');
    assert.ok(cookie.httpOnly && cookie.sameSite === 'Lax', JSON.stringify(cookie));
    await context.close();
  }
});

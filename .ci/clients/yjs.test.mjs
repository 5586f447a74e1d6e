// y-websocket: two editors of one document, which have the same text in the end.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import WebSocket, { WebSocketServer } from 'ws';
import { listen, startGate, until } from './kit.mjs';

// The server's part comes as CommonJS, and there is to be one yjs.
const require = createRequire(import.meta.url);
const Y = require('yjs');
const { WebsocketProvider } = require('y-websocket');
const { docs, setupWSConnection } = require('y-websocket/bin/utils');

async function start(t) {
  const server = createServer();
  new WebSocketServer({ server }).on('connection', (socket, request) => {
    request.url = request.url.split('?')[0]; // the room
    setupWSConnection(socket, request);
  });
  t.after(() => docs.forEach((doc) => doc.destroy()));
  return startGate(t, [await listen(t, server)]);
}

function editor(t, gate, token) {
  const doc = new Y.Doc();
  const provider = new WebsocketProvider(`ws://${gate.host}`, 'room', doc, { WebSocketPolyfill: WebSocket, params: { token }, disableBc: true, maxBackoffTime: 100 });
  t.after(() => { provider.destroy(); doc.destroy(); });
  return { text: doc.getText('page'), provider };
}

test('two editors, also after their connections were lost', async (t) => {
  const gate = await start(t);
  const a = editor(t, gate, 'sesame');
  const b = editor(t, gate, 'sesame');
  a.text.insert(0, 'Olá ');
  await until(() => b.text.toString() === 'Olá ', 'the text of the other');
  assert.equal((await gate.kick()).reached, 2);
  await until(() => !a.provider.wsconnected && !b.provider.wsconnected || a.provider.synced && b.provider.synced, 'an end or a return');
  a.text.insert(4, 'Ana');
  b.text.insert(0, '> ');
  await until(() => a.text.toString() === '> Olá Ana' && b.text.toString() === '> Olá Ana', 'one text');
});

test('a wrong token', async (t) => {
  const gate = await start(t);
  const { provider } = editor(t, gate, 'guess');
  const error = await new Promise((resolve) => { provider.once('connection-error', resolve); });
  assert.match(error.message, /401/);
});

// graphql-ws: a subscription, by the subprotocol graphql-transport-ws.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { GraphQLObjectType, GraphQLSchema, GraphQLString } from 'graphql';
import { createClient } from 'graphql-ws';
import { useServer } from 'graphql-ws/use/ws';
import WebSocket, { WebSocketServer } from 'ws';
import { listen, startGate, until } from './kit.mjs';

const greetings = {
  type: GraphQLString,
  async *subscribe(_, __, context) { for (const word of ['Olá', 'Hallo', context.connectionParams.name]) yield { greetings: word }; },
};
const schema = new GraphQLSchema({
  query: new GraphQLObjectType({ name: 'Query', fields: { hello: { type: GraphQLString, resolve: () => 'world' } } }),
  subscription: new GraphQLObjectType({ name: 'Subscription', fields: { greetings } }),
});

async function start(t) {
  const server = createServer();
  useServer({ schema, context: ({ connectionParams }) => ({ connectionParams }) }, new WebSocketServer({ server, path: '/graphql' }));
  return startGate(t, [await listen(t, server)]);
}

function client(gate, token, more = {}) {
  return createClient({ url: `ws://${gate.host}/graphql?token=${token}`, webSocketImpl: WebSocket, connectionParams: { name: 'Ana' }, lazy: true, ...more });
}

test('a subscription, and a client that comes back', async (t) => {
  const gate = await start(t);
  let connected = 0;
  const made = client(gate, 'sesame', { lazy: false, keepAlive: 1000, retryWait: async () => {}, shouldRetry: () => true, on: { connected: () => connected++ } });
  const heard = [];
  for await (const { data } of made.iterate({ query: 'subscription { greetings }' })) heard.push(data.greetings);
  assert.deepEqual(heard, ['Olá', 'Hallo', 'Ana']);
  assert.equal((await gate.kick()).reached, 1);
  await until(() => connected === 2, 'the connection is back');
  const { value } = await made.iterate({ query: '{ hello }' }).next();
  assert.equal(value.data.hello, 'world');
  await made.dispose();
});

test('a wrong token', async (t) => {
  const gate = await start(t);
  await assert.rejects(client(gate, 'guess', { retryAttempts: 0 }).iterate({ query: '{ hello }' }).next(), (error) => /401/.test(error.message ?? error.reason));
});

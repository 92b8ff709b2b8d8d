// SPDX-License-Identifier: Apache-2.0
// resolver.js SERVER N: asks the server for N names at once, by c-ares.
const { Resolver } = require('node:dns');
const [server, n] = process.argv.slice(2);
const resolver = new Resolver();
resolver.setServers([server]);
for (let i = 0; i < Number(n); i++)
  resolver.resolve4(`host${i}.example.test`, err => console.log(err ? `error ${err.code}` : 'answer'));

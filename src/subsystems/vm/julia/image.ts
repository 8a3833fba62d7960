import type { Recipe } from '../added/provision.ts';

export const JULIA: Recipe = {
  runtime: 'julia',
  title: 'Julia',
  packages: ['julia'],
  // The last release of Debian that has Julia; its mirrors still carry it.
  suites: ['bullseye'],
  kept: ['lib', 'lib64', 'usr/bin/julia', 'usr/lib', 'usr/share/julia', 'etc/julia'],
  links: {},
};

// What a guest asks for is called as it says, even where that is no host's name.

const NAME = /^(?=.{1,253}$)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*$/;

/** Whether a name is that of one host, and no pattern for many: `*.com` can be asked for, too. */
export function isOneHost(name: string): boolean {
  return NAME.test(name);
}

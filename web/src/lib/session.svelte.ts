// The key that people sign in with. It is kept for this tab only.

const STORED = "comfy-farm.key";

class Session {
  key = $state<string | null>(sessionStorage.getItem(STORED));
  /** Why people have to sign in again. */
  reason = $state<string | null>(null);

  signIn(key: string): void {
    sessionStorage.setItem(STORED, key);
    this.key = key;
    this.reason = null;
  }

  signOut(reason: string | null = null): void {
    sessionStorage.removeItem(STORED);
    this.key = null;
    this.reason = reason;
  }
}

export const session = new Session();

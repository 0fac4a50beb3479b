#include <stdio.h>

int main(void)
{
    puts("built in a MicroVM");
    return 0;
}
